"""Data sets of other forms, brought into the data form: `python -m training convert`. No torch."""
