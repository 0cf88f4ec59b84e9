"""Speed, memory and quality of models on this machine: combinations of settings, each measured in a process of its own."""
