"""What only a GPU can show: a command for who has one, whose answers this project cannot get by itself."""
