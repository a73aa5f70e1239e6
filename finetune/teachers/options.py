"""Options of teachers and of scoring groups, validated together for Python and the command line."""

import os
from dataclasses import dataclass
from pathlib import Path

from rerank_plugin.errors import OptionError
from rerank_plugin.io.keys import check_key, read_key
from rerank_plugin.io.streams import is_stream
from rerank_plugin.options import ModelOptions, check_options, option

from ..data.writer import check_files
from .formats import FORMATS, endpoint_format, is_endpoint, is_local

#: What the scores of an endpoint can be.
ENDPOINT_SCORES = ("probabilities", "logits")

#: The number of requests to an endpoint that need no consent.
MAX_REQUESTS = 1_000


@dataclass(kw_only=True)
class TeacherOptions:
    """Options of the teachers that score groups."""

    teacher: str | list[str] = option(
        help="a reranker: a hub id, a folder, or the URL of an HTTP endpoint in Jina's or Cohere's "
        "format, as in https://host/v1/rerank; of several the scores are averaged"
    )
    endpoint_model: str | None = option(None, help="the model that requests to an endpoint name")
    endpoint_format: str | None = option(
        None,
        choices=tuple(FORMATS),
        help="the format of an endpoint; default: cohere for a URL that ends in /v2/rerank, else "
        "jina",
    )
    endpoint_scores: str | None = option(
        None,
        choices=ENDPOINT_SCORES,
        help="what an endpoint returns; probabilities, the default, are turned into logits",
    )
    api_key_env: str | None = option(
        None, help="the environment variable that has the API key of an endpoint"
    )
    api_key_file: str | None = option(
        None, help="the file that has the API key of an endpoint, readable by its owner only"
    )
    max_requests: int | None = option(
        None,
        minimum=1,
        help="the number of requests to an endpoint that may be sent; default: "
        f"{MAX_REQUESTS}. The number that is needed is shown first",
    )
    requests_per_minute: float | None = option(
        None, help="the rate limit of an endpoint; default: none"
    )
    concurrency: int | None = option(
        None, minimum=1, help="requests to an endpoint at the same time; default: 4"
    )

    def check_teachers(self) -> None:
        """Check the options of endpoints.

        Raises:
            OptionError: an option has no effect, or the key cannot be read.
        """
        if not self.teachers:
            raise OptionError("teacher", "expected a reranker or an endpoint")
        endpoints = [teacher for teacher in self.teachers if is_endpoint(teacher)]
        if len(endpoints) > 1:
            raise OptionError("teacher", "only one of several can be an endpoint")
        if not endpoints:
            for name in ENDPOINT_OPTIONS:
                if getattr(self, name) is not None:
                    raise OptionError(name, "requires the URL of an endpoint as --teacher")
            return
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            problem = f"must be more than 0, not {self.requests_per_minute}"
            raise OptionError("requests_per_minute", problem)
        chosen = self.endpoint_format or endpoint_format(endpoints[0])
        if chosen == "cohere" and not self.endpoint_model:
            raise OptionError("endpoint_model", "Cohere's format requires the name of a model")
        if self.api_key() and endpoints[0].startswith("http:") and not is_local(endpoints[0]):
            raise OptionError("teacher", "an API key is sent over https only, not over http")

    @property
    def teachers(self) -> list[str]:
        """Return the teachers."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher)

    def api_key(self) -> str | None:
        """Return the API key of an endpoint, if it has one.

        Raises:
            OptionError: it cannot be read.
        """
        if self.api_key_env and self.api_key_file:
            raise OptionError("api_key_env", "not allowed with --api_key_file")
        if self.api_key_file:
            return read_key(self.api_key_file)
        if not self.api_key_env:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise OptionError("api_key_env", f"the variable {self.api_key_env} is not set")
        return check_key(key.encode(), "api_key_env", self.api_key_env)


#: The options that only endpoints have.
ENDPOINT_OPTIONS = tuple(name for name in TeacherOptions.__dataclass_fields__ if name != "teacher")


@dataclass(kw_only=True)
class ScoreGroupsOptions(TeacherOptions, ModelOptions):
    """Write the scores of a teacher into groups, as pos_scores and neg_scores."""

    data_path: str | list[str] = option(help="groups: .jsonl or .jsonl.gz files, folders or globs")
    output: str = option(
        help="the .jsonl file of the scored groups; an interrupted command resumes if it is "
        "repeated"
    )
    overwrite: bool = option(False, help="replace an earlier --output")
    relabel: bool = option(
        False,
        help="make the passage that the teacher scores best the positive of its group, whatever "
        "the labels: for groups of mine --unlabelled",
    )
    candidates: int | None = option(
        None,
        minimum=2,
        help="keep so many passages of a group: the positives, and others spread over the range of "
        "the teacher's scores; default: all",
    )

    def __post_init__(self) -> None:
        check_options(self)
        self.check_teachers()
        output = Path(self.output)
        if is_stream(output):
            raise OptionError("output", f"{output} is a stream: expected a file")
        check_files([output], [self.data_path], overwrite=self.overwrite)
