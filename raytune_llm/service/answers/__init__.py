"""Where requests for chats and texts are answered: a choice of conf/service/answers."""
