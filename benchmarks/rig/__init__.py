"""What `serving.py` measures with: servers, and what the machine did meanwhile. The load is `handlergen.bench`'s."""
