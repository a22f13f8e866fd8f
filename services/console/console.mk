.PHONY: up demo
up: setup ## Start the hub on this machine; Ctrl-C stops it
	@$(BIN)/hub up

demo: setup ## Send real studies through the hub and show the dataset that comes out
	@$(BIN)/hub demo
