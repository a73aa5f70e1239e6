"""`--push_to_hub`: the trained folder as a repository of the Hugging Face hub."""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rerank_plugin.errors import OptionError, RerankError
from rerank_plugin.model.loaded import in_one_line, quiet_transformers

logger = logging.getLogger(__name__)


class UploadError(RerankError):
    """The trained folder is finished and could not be uploaded."""


@dataclass(frozen=True)
class HubRepository:
    """A repository that was made before training, so that nothing but the upload is left.

    Attributes:
        name: Its whole name, `user/model`.
        revision: The branch that is written; default the main one.
        token: The access token; default the one that is logged in.
    """

    name: str
    revision: str | None
    token: str | None

    @classmethod
    def create(cls, options: Mapping[str, Any], *, default_name: str) -> Self:
        """Create the repository that training arguments ask for, or find it.

        Args:
            options: `hub_model_id`, `hub_private_repo`, `hub_revision` and `hub_token`.
            default_name: The name of a repository without a `hub_model_id`.

        Raises:
            OptionError: no network, no token, or one without the right to write there.
        """
        from huggingface_hub import HfApi

        token, revision = options.get("hub_token"), options.get("hub_revision")
        api = HfApi(token=token)
        name = options.get("hub_model_id") or default_name
        try:
            private = options.get("hub_private_repo")
            created = api.create_repo(name, private=private, exist_ok=True)
            # One that exists may be somebody else's.
            api.auth_check(created.repo_id, write=True)
            if revision:
                api.create_branch(created.repo_id, branch=revision, exist_ok=True)
        except Exception as error:
            # The client raises errors of its own, of its HTTP library, and of the system.
            problem = f"{name} cannot be created or written on the hub: {in_one_line(error)}"
            raise OptionError("push_to_hub", problem) from error
        return cls(created.repo_id, revision, token)

    def upload(self, folder: Path) -> None:
        """Upload a trained folder as one commit.

        Raises:
            UploadError: it could not be uploaded, and how to do it by hand.
        """
        from huggingface_hub import HfApi

        logger.info("uploading %s to %s", folder, self.name)
        with quiet_transformers():
            try:
                commit = HfApi(token=self.token).upload_folder(
                    repo_id=self.name,
                    folder_path=folder,
                    revision=self.revision,
                    commit_message="Upload a reranker fine-tuned with rerank-plugin",
                )
            except Exception as error:
                command = ["hf", "upload", self.name, str(folder), "."]
                command += ["--revision", self.revision] if self.revision else []
                raise UploadError(
                    f"the model is in {folder}, its upload failed: {in_one_line(error)}; "
                    f"upload it by: {shlex.join(command)}"
                ) from error
        logger.info("uploaded: %s", commit.commit_url)
