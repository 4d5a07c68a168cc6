"""Programs as other stages of compilers hold them, and as the fuser reads them."""
