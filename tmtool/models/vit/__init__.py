"""Vision transformers that only embed: Prithvi and Clay."""
