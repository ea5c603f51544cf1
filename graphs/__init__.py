"""What is computed: the selection, the query vector, and the stages of each model family."""
