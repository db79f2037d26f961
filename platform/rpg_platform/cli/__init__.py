"""The command `rpg`: one module a command, each of which calls the package and prints."""
