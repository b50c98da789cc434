// Package commitlog is a log of transactions in segment files: the default Log of a lifecycle.Host, and
// useful alone. One goroutine appends and syncs; any number read and truncate at the same time.
//
//	l, err := commitlog.Open(dir, commitlog.Options{})
//	...
//	err = l.Append([][]byte{tx})
//	err = l.Sync() // nil: tx is durable
//	for entry, err := range l.Read(l.First()) { ... }
//	err = l.Close()
//
// # What it assumes
//
//   - A local file system and a disk that keep what a successful sync covers. A disk that lies about its
//     cache, or a network file system without real locks, breaks every promise below.
//   - Writing over bytes does not harm others in other sectors, and never those that were the same before.
//   - Rename is atomic. A directory whose sync failed does not go on as if it hadn't: journaling file
//     systems stop.
//   - Nobody else changes the directory. The lock keeps other Logs out, not other programs. An open file keeps its
//     identity (device and inode).
//   - Not assumed: that unsynced writes reach the disk in order, whole, or at all; that a sync after a failed
//     one means anything; that a file's size is right after a crash; that new space reads as zeros; that what reads
//     return after a failed sync is on the disk.
//
// # What it promises
//
//   - What was appended before a Sync, or a Close, that returned nil is there after any crash, in order, once.
//     What was not may be there, from the next offset on and without gaps, or not. An opened log is durable
//     as a whole: what Open shows will not vanish in the next crash.
//   - After the first failed write or sync everything is refused until the log is opened again. Nothing is tried twice.
//   - Damage to acknowledged data is not taken for a torn tail where there is proof against it: a later frame
//     that was written after a sync of what is missing, a later segment, or the mark that Close leaves. So after
//     a Close that returned nil, any damaged byte that matters, any missing segment but the oldest, and
//     any segment shorter than it was made is a *DamageError. Bytes that don't matter are padding and what
//     stands behind the end of a segment.
//   - Nothing stale comes back: not from recycled files, other logs, other places of this one, or what a crash
//     left behind the end and a later life of the log has written up to.
//   - Reading never delays appending. Opening a log that exists needs no new disk space (for an exception see
//     below).
//
// # What it does not promise
//
//   - After a crash, damage to what only the last sync covered can't be told from a torn tail: nothing was
//     written later that would tell. Nor can the loss of the oldest segments be told from a truncation, or
//     that of all files from a new log, or the replacement of the whole directory by an older copy. And after a
//     Close, where a whole sector is lost or old that holds the last frames and the mark behind them, the proof is
//     gone with what it proves.
//   - While a log is open its directory stays where it is, and its lock file too. That another directory has taken
//     its place, or another process has locked a new file there, is noticed by Read and TruncateBefore, and before the next segment
//     begins: then the log fails. What was acknowledged before is in the directory that was moved. Two that write to one
//     directory until then damage it.
//   - CRC32C finds accidents, not forgery.
//   - Before a Sync, some frames of an Append may survive a crash and later ones not.
//   - On Windows a new name in the directory is as durable as NTFS makes it: there is no call to sync it.
//
// # How it recovers
//
// Open reads every segment, those before the last in full: each was synced before the next one got its
// name, so whatever is wrong there is damage. In the last one it goes on to the first place where no valid
// frame continues the chain, or to the mark of a clean close. The rest of the
// file is searched for a frame header written after the offset expected there had been synced. If there is one, Open
// refuses with a *DamageError and has changed no segment. If not, that place is the end: what follows was never
// acknowledged.
//
// What is read of the last segment may stand only in the system's cache, after a sync of it failed. On Linux Open
// first has it dropped from the cache, and so reads it from the disk: on ext4, writing the same bytes once more and syncing them
// reports success and may still not bring them there, as long as they are cached. Where they stay cached because another
// process reads or maps the file, Open puts a synced copy in the segment's place (the one case in which it needs disk space).
// Otherwise, if no mark is there, with one sync, the frames that no later frame says were synced are written over themselves; and zeros are
// written over the header of the frame that would come next, so that nothing written there later can make a
// torn frame whole. The rest is left as it is. The chain of links, below, keeps it out for ever, and wiping it
// would prove less: a wipe that a failed sync lost reads as a wipe.
//
// # Files
//
// The directory holds segments, named by the offset of their first transaction in 20 decimal digits and
// ".log"; the file "lock"; and the makings of segments to come, up to one more than Options.SpareSegments: while a Log is open
// they are called "prepare-SESSION-NNNNNN.tmp", and Close names those of full size "spare-SESSION-NNNNNN.tmp". Open takes those up again, and removes
// the others, which a crash left: what a failed sync may have left unwritten in them can't be told. Other names are left alone. The first segment has 64 KiB, each next
// one twice as much, up to Options.SegmentBytes. Most are filled with zeros ahead or recycled, since a sync of
// bytes that were written before is about twice as fast; but a segment may just as well grow, and is longer than it
// should be if its first frame is.
//
// # Format, version 1
//
// Numbers are little-endian. CRC is CRC32C (Castagnoli). A segment is a header of 4096 bytes, and then
// frames, each at a multiple of 8.
//
// Segment header:
//
//	0     8   "LCLOGSEG"
//	8     4   version, 1
//	12    4   size of this header, 4096
//	16    16  identity of the log, random, the same in all its segments
//	32    8   base: offset of the first transaction
//	40    8   capacity: position that no frame passes but the first
//	48    8   size of the file when it got its name: it is never shorter
//	56    .   zeros
//	4092  4   CRC of bytes 0 to 4091
//
// The header, and the size, are synced before the segment gets its name, and the name before anything
// is appended. A segment whose header is bad is damaged, never torn.
//
// Frame:
//
//	0     4   kind: "CLF1" a batch, "CLE1" end: closed in order, "CLN1" next: goes on in the next segment
//	4     4   length of the records
//	8     4   number of records
//	12    4   link: bytes 44 to 47 of the batch before, or the segment header's CRC
//	16    8   offset of the first record
//	24    8   synced: every offset below had been synced when this was written
//	32    8   session: random, of the Open under which this was written
//	40    4   CRC of the records
//	44    4   CRC of bytes 0 to 43
//	48    .   records, one after another: length (4 bytes), content
//
// Both CRCs of a frame start not from 0 but from the CRC of the segment header's bytes 16 to 39 (identity and base),
// exclusive-or the frame's position divided by 8, its lower 32 bits. So a frame counts at one position of one
// segment only. Up to 7 bytes between a frame's end and the next multiple of 8 mean nothing and may be
// anything.
//
// A batch continues the log if its offset is the one expected and its link the sum of the batch before. As
// every session draws a number of its own, what an earlier session wrote behind the place at which a later one
// went on has a link that leads nowhere, even if both wrote the same transactions there. Synced is either the
// batch's own offset (the first after a sync) or the same as in the batch before.
//
// A mark has no records, and its synced is its offset: it is written after a sync of everything before,
// and synced itself. It is not part of the chain: the first batch of the next session is written over an
// end mark. There is room for a mark behind every batch. A next mark is written once the next segment has its
// name, to prove that it existed; a segment may lack it after a crash.
package commitlog
