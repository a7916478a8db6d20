"""The library: built variants, content-addressed, so that no run builds anything twice."""

from blockwright.library.store import LIBRARY_VERSION, Library, kind_of, variant_key

__all__ = ["LIBRARY_VERSION", "Library", "kind_of", "variant_key"]
