from hypothesis import settings

# the same examples on every run, and no limit on the time of one: a loaded machine is no failure
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
