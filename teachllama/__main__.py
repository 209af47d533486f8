import sys

from teachllama.cli import main

sys.exit(main())
