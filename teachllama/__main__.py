from teachllama.cli import main
import sys
sys.exit(main())
