"""What `serving.py` measures with: a load generator, servers, figures from recordings."""
