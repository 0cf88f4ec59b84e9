"""How bytes get safely to disk: work file, journal, atomic rename; one module per format."""
