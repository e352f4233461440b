"""Labelled folders, looked at before a machine learns from them: `python -m training validate`. No torch."""
