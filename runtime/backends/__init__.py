"""What runs graphs: one folder for each engine, behind the interface in `engine.py`."""
