"""`--push_to_hub`: upload the trained folder to the Hugging Face Hub."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rerank_plugin.errors import OptionError, RerankError
from rerank_plugin.model.loaded import in_one_line, quiet_transformers

logger = logging.getLogger(__name__)

#: Files that contain paths of this machine, or training data.
PRIVATE = ["runs/*", "skipped_lines.jsonl"]


class UploadError(RerankError):
    """The trained folder is finished, and its upload failed."""


@dataclass(frozen=True)
class HubRepository:
    """A repository, created before training, so that only the upload remains.

    Attributes:
        name: Its id, `user/model`.
        revision: The branch to upload to; default the main one.
        token: The access token; default that of the login.
    """

    name: str
    revision: str | None
    token: str | None

    @classmethod
    def create(cls, options: Mapping[str, Any], *, default_name: str) -> Self:
        """Create the repository that the training arguments ask for, if it does not exist.

        Args:
            options: `hub_model_id`, `hub_private_repo`, `hub_revision` and `hub_token`.
            default_name: The name of a repository without a `hub_model_id`.

        Raises:
            OptionError: no network, no token, or a token without write access.
        """
        from huggingface_hub import HfApi

        token, revision = options.get("hub_token"), options.get("hub_revision")
        api = HfApi(token=token)
        name = options.get("hub_model_id") or default_name
        try:
            private = options.get("hub_private_repo")
            created = api.create_repo(name, private=private, exist_ok=True)
            # An existing repository may belong to somebody else.
            api.auth_check(created.repo_id, write=True)
            if revision:
                api.create_branch(created.repo_id, branch=revision, exist_ok=True)
        except Exception as error:
            # The client raises errors of its own, of its HTTP library and of the system.
            problem = f"cannot create or write {name} on the Hub: {in_one_line(error)}"
            raise OptionError("push_to_hub", problem) from error
        return cls(created.repo_id, revision, token)

    def upload(self, folder: Path) -> None:
        """Upload a trained folder as one commit, without logs and skipped lines.

        Raises:
            UploadError: it failed; the message has the command to repeat it.
        """
        from huggingface_hub import HfApi

        logger.info("uploading %s to %s", folder, self.name)
        with quiet_transformers():
            try:
                commit = HfApi(token=self.token).upload_folder(
                    repo_id=self.name,
                    folder_path=folder,
                    ignore_patterns=PRIVATE,
                    revision=self.revision,
                    commit_message="Upload a reranker fine-tuned with rerank-plugin",
                )
            except Exception as error:
                # Whatever the client raises: the model is complete, and can be uploaded later.
                command = ["hf", "upload", self.name, str(folder), "."]
                command += ["--revision", self.revision] if self.revision else []
                raise UploadError(
                    f"the upload of {folder} failed: {in_one_line(error)}; upload it with: "
                    f"{shlex.join(command)}"
                ) from error
        logger.info("uploaded: %s", commit.commit_url)
