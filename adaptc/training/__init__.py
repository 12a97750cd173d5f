"""What is trained: gates and cheap paths, stitches, routers, modality gates."""
