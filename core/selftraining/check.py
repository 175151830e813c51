"""`--check`: everything a run needs, tried once, and what the run will cost."""
def check(*a, **k):
    raise SystemExit
