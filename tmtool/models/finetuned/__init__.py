"""Models that people fine-tuned with TerraTorch: their configs, their networks, and predicting with them.

`config` and what it uses are plain Python; `network` and `predictor` import torch and terratorch.
"""
