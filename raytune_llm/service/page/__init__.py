"""The files of the page at /tuning; service/api/page.py serves them."""
