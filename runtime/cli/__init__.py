"""The command line: `app` joins the groups of commands, each in a file of its own."""
