"""How bytes get safely to disk: work file, journal, atomic names; one file a format."""
