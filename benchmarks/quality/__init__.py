"""Is it right, and as robust?"""
