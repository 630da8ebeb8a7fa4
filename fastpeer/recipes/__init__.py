"""fastpeer.recipes"""
