"""Write models: folders, merged adapters, uploads."""
