"""What answering beyond one process takes: batches, replicas, decoders elsewhere, and machines by the thousand."""
