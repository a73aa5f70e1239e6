"""Load models: folders, LoRA adapters, settings, scoring heads."""
