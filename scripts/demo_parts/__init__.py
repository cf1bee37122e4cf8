"""What scripts/demo_run.py is made of. The tests with real Envoys use its processes, Envoys and load too."""
