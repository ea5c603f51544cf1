"""`rediprune loadtest`: what it asks of a server, what clients then see, and the table of it. It knows servers by their URL alone."""
