"""The server on Ray Serve: replicas behind a front that knows which of them has seen a picture."""
