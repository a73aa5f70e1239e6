"""The versions that every JSON file of a run carries."""

from rerank_plugin import __version__

#: The version of the files' layout, and of the package that wrote them.
VERSIONS = {"schema_version": 1, "rerank_plugin_version": __version__}
