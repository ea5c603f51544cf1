"""Pictures and videos: read, sized as the checkpoint wants them, and shown with what was kept of them."""
