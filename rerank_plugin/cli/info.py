"""`rerank-plugin info`: print what is known of a model without reading its weights."""

import json
from dataclasses import asdict, dataclass

from rerank_plugin.cli.console import Stdout
from rerank_plugin.options import DeviceOptions, option


@dataclass(kw_only=True)
class InfoOptions(DeviceOptions):
    """Print a model's format, prompt, head and limits, and how it would run here."""

    model_dir: str = option(help="the model: a hub id, a folder or an adapter folder")
    json: bool = option(False, help="print one JSON object")


def main(options: InfoOptions) -> int:
    """Print the properties of the model."""
    from rerank_plugin.info.model_info import model_info

    info = model_info(
        options.model_dir,
        device=options.device,
        dtype=options.dtype,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    text = json.dumps(asdict(info), ensure_ascii=False, indent=2)
    Stdout().write(f"{text if options.json else info}\n")
    return 0
