"""What `serving.py` and its like measure with: servers, load in turns, what the machine did meanwhile, and a report."""
