"""The tuning service: HTTP requests in OpenAI's and Vertex's words become Ray jobs, and what their runs write is read
back. It runs commands only; whatever it does, a command line does too."""
