"""The HTTP routes: files, tuning jobs in two shapes, chat, the page."""
