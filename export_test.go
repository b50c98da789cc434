package lifecycle

// GroupsOf is how many task groups h keeps.
func GroupsOf(h *Host) int {
	h.tasks.mu.Lock()
	defer h.tasks.mu.Unlock()
	return len(h.tasks.groups)
}
