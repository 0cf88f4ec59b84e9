"""One file a family of models: its facts and its entries in the registry. Nothing heavy is imported at their heads."""
