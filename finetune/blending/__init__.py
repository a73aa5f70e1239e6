"""Blend a fine-tuned model with its base: weights between both."""
