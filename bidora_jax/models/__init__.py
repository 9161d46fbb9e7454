"""The decoder, its adapters and the Hugging Face files they come from and go to."""
