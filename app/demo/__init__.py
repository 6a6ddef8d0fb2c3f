"""The demo: a made task taken through the product, step by step."""
