"""A project to a `.mar` and back: render, collect, pack, publish; read, check, sign."""
