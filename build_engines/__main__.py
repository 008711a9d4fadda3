"""`python -m nemodiff_trt.build_engines`."""

from nemodiff_trt.build_engines.cli import main

if __name__ == "__main__":
    main()
