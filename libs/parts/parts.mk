# Included by the Makefile of the repository, which defines PYTHON and BIN.

.PHONY: minio test-power
minio: ## Build MinIO's server, once, for HUB_PARTS_S3=minio and HUB_DURABILITY=power (3 to 5 minutes)
	@$(PYTHON) tools/setup.py --group minio
	@$(BIN)/python -m hub_parts build-minio

test-power: minio ## Cut the power on a copied disk and look for everything acknowledged (needs root)
	$(BIN)/pytest tests/chaos/test_power_cut.py
