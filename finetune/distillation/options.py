"""The options of distillation: those of a training run and those of its teacher."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rerank_plugin.errors import OptionError
from rerank_plugin.options import option

from ..config import FinetuneConfig
from ..teachers.options import ScoreGroupsOptions, TeacherOptions

#: The loss by default: docs/benchmarks.md compares it with others.
DEFAULT_LOSS = "kl_divergence"

#: The names of scored files, by the options of their groups.
SCORED = {
    "data_path": "train.jsonl",
    "unlabelled_data_path": "unlabelled.jsonl",
    "eval_data_path": "validation.jsonl",
    "test_data_path": "test.jsonl",
}


@dataclass(kw_only=True)
class DistillConfig(TeacherOptions, FinetuneConfig):
    """Train a student on the scores of a teacher, evaluated before, during and after training.

    Raises:
        OptionError: a value is invalid; the message starts with the name of the option.
    """

    unlabelled_data_path: str | list[str] | None = option(
        None,
        help="candidates of queries without labels, as mine --unlabelled writes them: the "
        "teacher's best one is the positive",
    )
    candidates: int | None = option(
        None,
        minimum=2,
        help="keep so many candidates of a query without labels, spread over the range of the "
        "teacher's scores; default: all",
    )
    scores_dir: str | None = option(
        None,
        help="the folder for the scored groups, which are kept; default: "
        "<finetune_model_dir>.scores",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_teachers()
        self.loss = self.loss or DEFAULT_LOSS
        if self.candidates and not self.unlabelled_data_path:
            raise OptionError("candidates", "requires --unlabelled_data_path")
        if self.unlabelled_data_path and not self.eval_data_path:
            raise OptionError(
                "unlabelled_data_path",
                "requires --eval_data_path: on labels of the teacher no model can be measured",
            )

    @property
    def folder(self) -> Path:
        """The folder of the scored groups."""
        return Path(self.scores_dir or f"{self.finetune_model_dir.rstrip('/')}.scores")

    def scoring(self, name: str) -> ScoreGroupsOptions:
        """Return the options of scoring the groups of an option."""
        unlabelled = name == "unlabelled_data_path"
        teacher = {field.name: getattr(self, field.name) for field in fields(TeacherOptions)}
        return ScoreGroupsOptions(
            **teacher,
            data_path=getattr(self, name),
            output=str(self.folder / SCORED[name]),
            # What is there is compared with these options before it is replaced.
            overwrite=True,
            relabel=unlabelled,
            candidates=self.candidates if unlabelled else None,
            max_length=self.max_len,
            instruction=self.instruction,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            trust_remote_code=self.trust_remote_code,
        )

    def training(self) -> FinetuneConfig:
        """Return the options of the training run on the scored groups."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(FinetuneConfig)
        }
        config = FinetuneConfig(**values)
        scored: dict[str, Any] = {
            name: str(self.folder / file) for name, file in SCORED.items() if getattr(self, name)
        }
        unlabelled = scored.pop("unlabelled_data_path", None)
        labelled = scored.pop("data_path")
        data_path = [labelled, unlabelled] if unlabelled else labelled
        return replace(config, data_path=data_path, **scored)
