"""The paper's comparisons as commands: a table is rows of settings, a cell one training of one row."""
