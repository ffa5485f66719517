"""The chat page: HTML, CSS and JavaScript as files, and what the server does for it.

render.py      Markdown to HTML, whole or block by block as an answer streams; highlight.py, mathml.py
documents.py   a dropped file to text
worker.py      both of them in a confined child process that can be stopped
prompts.py     the card's two templates, filled in so that nobody's text becomes a control token
model_info.py  what the page says of the model
routes.py      all of it over HTTP; plain.py is the page without JavaScript
"""
