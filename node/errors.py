"""Every failure, arranged by who is at fault, and the one catalogue of codes.

A class says who must act; a code says what happened. A code that is not in `CATALOGUE` cannot be raised.
The documentation page and the API's error bodies are generated from the catalogue. More than 500 lines because it
is one table, and a code is looked up in one place.
"""

from typing import Final

import msgspec


class ErrorEntry(msgspec.Struct, frozen=True):
    """One code: why it happens, what the reader should do, and whether the same request may succeed later."""

    cause: str
    action: str
    retryable: bool = False


class HansaError(Exception):
    """A failure with a code of the catalogue. `details` are plain JSON values for machines."""

    exit_code = 70

    def __init__(self, code: str, message: str, **details: str | int | bool | None) -> None:
        """`message` says what happened here; cause and action come from the catalogue."""
        self.entry = CATALOGUE[code]
        self.code = code
        self.message = message
        self.details = details
        super().__init__(f"{code}: {message}")


class RejectedTransaction(HansaError):
    """The client is at fault: nothing was changed (HTTP 4xx, exit 1)."""

    exit_code = 1


class NotFound(HansaError):
    """The reader asked for what is not there (HTTP 404, exit 1)."""

    exit_code = 1


class ConfigError(HansaError):
    """The operator's configuration or use is wrong (exit 2, one line, no traceback)."""

    exit_code = 2


class InvalidBlock(HansaError):
    """The proposer is at fault: the block is not voted for."""


class InvalidFrame(HansaError):
    """The peer is at fault: it is disconnected."""


class StoreError(HansaError):
    """The disk is at fault: stop cleanly, nothing is lost (exit 3)."""

    exit_code = 3


class Unavailable(HansaError):
    """Nobody is at fault yet: the node or its queues cannot take this now (HTTP 503 or 429, exit 4)."""

    exit_code = 4


class NotFinal(Unavailable):
    """What was accepted is not final yet, and its fate is open (exit 5)."""

    exit_code = 5


CATALOGUE: Final[dict[str, ErrorEntry]] = {
    # --- transactions (client) ---
    "malformed_transaction": ErrorEntry(
        "The bytes are not the canonical encoding of a transaction.",
        "Build the transaction with the client library or the CLI, and send its bytes unchanged.",
    ),
    "wrong_network": ErrorEntry(
        "The transaction was signed for another network.",
        "Compare the network id with `hansa status` and sign again.",
    ),
    "change_stops_network": ErrorEntry(
        "After the change the members that run now would be fewer than a quorum of the validators.",
        "Start the members that are down first; with --anyway it is said all the same, and the ledger lets it take"
        " effect only once a quorum of the new validators has shown that it runs.",
    ),
    "bad_signature": ErrorEntry(
        "A signature does not verify for the key beside it.",
        "Sign again with the right key.",
    ),
    "unknown_principal": ErrorEntry(
        "The sender is not a principal of this network.",
        "Check the spelling with `hansa query membership.principals`.",
    ),
    "not_for_nodes": ErrorEntry(
        "A member's node, which signs with the voting key, says that it is ready and makes no other call.",
        "Send it as the member's root principal or as one below it.",
    ),
    "policy_unsatisfied": ErrorEntry(
        "The signatures do not satisfy the sender's key policy (m of n keys).",
        "Add the missing signatures, or sign with keys of the policy: `hansa query membership.principal`.",
    ),
    "approval_required": ErrorEntry(
        "A tier of the sender's member asks for more signatures than the sender's for these calls.",
        "Ask for it with the same calls: `hansa approvals request CONTRACT.METHOD …`; or let the tier's persons"
        " sign too: `hansa tx build`, `hansa tx sign`. If too many of them lost their keys:"
        " `hansa propose remove_tier`.",
    ),
    "request_ended": ErrorEntry(
        "The request was executed, rejected or withdrawn, has failed, or has expired. Nothing was sent.",
        "`hansa approvals show N` says how it ended; if it is still wanted, request it anew.",
    ),
    "approved_already": ErrorEntry(
        "The sender's approval stands on the ledger and counts. Nothing was sent.",
        "`hansa approvals show N` names whom the request still waits for.",
    ),
    "digest_differs": ErrorEntry(
        "The node shows other calls than those that its request's digest names.",
        "Approve nothing there; ask another node with --node, and tell the member whose node it is.",
    ),
    "expired": ErrorEntry(
        "The transaction's expires_at_ms has passed.",
        "Send it again with a new expiry and, if it never became final, the same request_id.",
    ),
    "expiry_too_far": ErrorEntry(
        "expires_at_ms lies more than 24 hours ahead.",
        "Choose an expiry within 24 hours.",
    ),
    "request_conflict": ErrorEntry(
        "The sender has used the request_id before, for the transaction that is named.",
        "See what came of that one: `hansa tx show TX_ID`. Only what shall happen besides it takes a new"
        " request_id: the same payment under another id is paid twice.",
    ),
    "transaction_too_large": ErrorEntry(
        "The transaction is larger than a block of this network may be.",
        "Split it into several transactions.",
    ),
    "too_many_calls": ErrorEntry(
        "A transaction carries 1 to 10,000 calls.",
        "Split it into several transactions.",
    ),
    "unknown_contract": ErrorEntry(
        "No contract of that name is active.",
        "List them with `hansa contracts`.",
    ),
    "unknown_method": ErrorEntry(
        "The contract has no such method.",
        "List its methods with `hansa contracts`.",
    ),
    "invalid_arguments": ErrorEntry(
        "An argument is missing, unknown, of the wrong type or out of range.",
        "Compare with the method's schema: `hansa contracts`.",
    ),
    "queue_full": ErrorEntry(
        "The node holds as many waiting transactions as its limits allow.",
        "Send the same transaction again after retry_after.",
        retryable=True,
    ),
    "disk_low": ErrorEntry(
        "The node's disk is full up to its reserve; it takes no transactions until space is freed.",
        "Send the same transaction to another node, or here again after retry_after. Here: `hansa why`.",
        retryable=True,
    ),
    # --- readers ---
    "transaction_not_found": ErrorEntry(
        "No transaction of that id was accepted by this node or is in its blocks.",
        "Check the id; a transaction sent to another node appears here after a moment.",
        retryable=True,
    ),
    "block_not_found": ErrorEntry("That height is not decided yet.", "Ask for a height up to the head."),
    "not_in_archive": ErrorEntry(
        "The archive file holds other blocks than that.",
        "Ask the file that holds it: `hansa archive list --archive-dir DIR` names the blocks of each file there.",
    ),
    # --- configuration and keys (operator) ---
    "config_unreadable": ErrorEntry(
        "The file does not exist, may not be read, or is too large.",
        "Check the path and its permissions; `hansa init` writes a first configuration.",
    ),
    "config_syntax": ErrorEntry("The file is not valid TOML.", "Correct the line that the message names."),
    "config_invalid": ErrorEntry(
        "A key of the configuration is missing, unknown or has a value that is not allowed.",
        "Correct the key that the message names.",
    ),
    "unknown_member": ErrorEntry(
        "The network has no member of that id.",
        "Use an id from [[members]] in network.toml.",
    ),
    "wrong_passphrase": ErrorEntry(
        "The passphrase does not open the key file.",
        "Check HANSA_PASSPHRASE, HANSA_PASSPHRASE_FILE or what was typed.",
    ),
    "passphrase_missing": ErrorEntry(
        "A key file is encrypted and no passphrase was given.",
        "Set HANSA_PASSPHRASE_FILE or HANSA_PASSPHRASE, or start it from a terminal.",
    ),
    "bundle_unreadable": ErrorEntry(
        "The file is no diagnostics bundle, is damaged, or may not be read.",
        "Have it made again with `hansa why --bundle FILE`, and copy it as it is.",
    ),
    "bundle_not_written": ErrorEntry(
        "The diagnostics bundle could not be written to the file.",
        "Name a file that does not exist yet, in a directory that exists and has room.",
    ),
    "key_file_unreadable": ErrorEntry(
        "The key file does not exist or may not be read.",
        "Check the path and its owner; `--key FILE` names another, `hansa keys new` makes one.",
    ),
    "key_file_exists": ErrorEntry(
        "A key file already lies there, and a key is never overwritten.",
        "Move the old file away first, if it is really not needed.",
    ),
    "key_file_invalid": ErrorEntry(
        "The file is not a key file of this software, or it is damaged.",
        "Restore it from a backup, or make a new key with `hansa keys`.",
    ),
    "key_file_permissions": ErrorEntry(
        "Other users of the machine may read the key file.",
        "Run `chmod 600` on it; if others had access, make a new key.",
    ),
    "wrong_key": ErrorEntry(
        "The key file holds another kind of key, or another member's, than is wanted here.",
        "Use the file that `hansa init` wrote for this member.",
    ),
    "export_passphrase_missing": ErrorEntry(
        "An exported key has a passphrase of its own, and none was given.",
        "Name a file that holds it with --export-passphrase-file, or start it from a terminal.",
    ),
    "pkcs11_missing": ErrorEntry(
        "A key in a device was named, and the package that speaks PKCS#11 is not installed.",
        "Install it: pip install 'hansa[pkcs11]'.",
    ),
    "token_unreachable": ErrorEntry(
        "The device's library cannot be loaded, or the device has no such token.",
        "Check module-path and token in the key's name, that the device is plugged in, and its own settings.",
    ),
    "token_key_not_found": ErrorEntry(
        "The token holds no such Ed25519 key, or several of that name.",
        "Check object and id in the key's name with the device's own tools; its public key must lie there too.",
    ),
    "token_refused": ErrorEntry(
        "The device refused: the PIN is wrong or locked, or it does not sign with Ed25519. Nothing was signed.",
        "Read the reason. A PIN is never tried again by itself: devices lock themselves after a few wrong ones.",
    ),
    "pin_missing": ErrorEntry(
        "The device wants a PIN and none was given.",
        "Add pin-source=file:PATH to the key's name, or start it from a terminal.",
    ),
    # --- peers ---
    "port_in_use": ErrorEntry(
        "Another program listens on that address.",
        "Stop it, or choose another port in node.toml.",
    ),
    "cannot_listen": ErrorEntry(
        "The system does not let this node listen on that address.",
        "Correct `listen` in node.toml: a local address, and a port that this user may open.",
    ),
    "invalid_frame": ErrorEntry(
        "A peer sent bytes that are no message of this protocol, or more of them than are allowed.",
        "Nothing here: the peer was disconnected. Ask its operator which version runs there.",
    ),
    "peer_gone": ErrorEntry(
        "The peer is not connected, or the connection ended before it answered.",
        "Ask another peer, or the same one after it has reconnected.",
        retryable=True,
    ),
    "peer_busy": ErrorEntry(
        "As much already waits for that peer as the limits allow.",
        "Ask another peer, or the same one later.",
        retryable=True,
    ),
    "peer_timeout": ErrorEntry(
        "The peer did not answer in time.",
        "Ask another peer, or the same one later.",
        retryable=True,
    ),
    # --- interfaces: API, client, CLI ---
    "route_not_found": ErrorEntry("The API has no such address.", "Look it up in /docs or /openapi.json."),
    "method_not_allowed": ErrorEntry(
        "The address exists, but not for this HTTP method.",
        "Use the method that /docs names for it.",
    ),
    "malformed_request": ErrorEntry(
        "The request's address, parameters or body do not have the documented form.",
        "Compare with the operation in /docs; the message names the part that is wrong.",
    ),
    "unsupported_media_type": ErrorEntry(
        "The body is neither JSON nor MessagePack.",
        "Send Content-Type application/json or application/msgpack.",
    ),
    "body_too_large": ErrorEntry(
        "The request's body is larger than this node reads.",
        "Send fewer transactions at a time; the limit stands in details.",
    ),
    "body_too_slow": ErrorEntry(
        "The request's body did not arrive in time.",
        "Send it again over a better connection, in smaller parts.",
        retryable=True,
    ),
    "node_busy": ErrorEntry(
        "The node is reading as many requests as its memory limits allow.",
        "Send the request again after a moment, or to another node.",
        retryable=True,
    ),
    "too_many_transactions": ErrorEntry(
        "A request carries 1 to 5,000 transactions.",
        "Send the rest in further requests.",
    ),
    "too_many_streams": ErrorEntry(
        "As many event streams are open as this node serves.",
        "Close one, try again later, or ask another node.",
        retryable=True,
    ),
    "proofs_spent": ErrorEntry(
        "Proofs asked for from one address took more of this node's time than one client gets (a minute of work at"
        " once, a quarter of a processor in the long run).",
        "Ask again after retry_after, or another node. Ask for proofs of recent heights: the older, the more work.",
        retryable=True,
    ),
    "invalid_cursor": ErrorEntry(
        "The cursor was not given out by this interface.",
        "Continue with the cursor of an earlier answer, unchanged, or start without one.",
    ),
    "history_pruned": ErrorEntry(
        "This node no longer keeps the state of that height.",
        "Ask for a later height, or a node that keeps a longer history.",
    ),
    "block_pruned": ErrorEntry(
        "This node no longer keeps the block of that height.",
        "Ask the archive file: `hansa archive query FILE --block HEIGHT`, or --tx, --account (`hansa archive list`"
        " shows the files). Or ask a node that keeps a longer history.",
    ),
    "unknown_field": ErrorEntry(
        "The contract keeps no field of that name in the state.",
        "Use one of the fields that the message names.",
    ),
    "account_not_found": ErrorEntry(
        "The settlement contract had no such account at that height.",
        "Check the spelling with `hansa query settlement.account`, or choose a later height.",
    ),
    "proof_too_large": ErrorEntry(
        "The proof would hold more entries, headers or changes of members than one file may.",
        "Ask for a shorter range of heights, or for a nearer checkpoint.",
    ),
    "transaction_executed": ErrorEntry(
        "The transaction was executed, so nobody can prove the contrary.",
        "If a call came to ok, do not pay it again (`hansa prove tx TX_ID` proves it); if all failed, nothing was"
        " paid, and a new request may be sent (after uetr_conflict: another payment was booked under the UETR).",
    ),
    "not_expired_yet": ErrorEntry(
        "The ledger may still execute the transaction: no block is past its expiry yet.",
        "Ask again when a block is later than expires_at_ms; idle networks make one each empty_block_interval_ms.",
        retryable=True,
    ),
    "retention_over": ErrorEntry(
        "Request ids of that age are forgotten, so absence proves nothing, and no earlier state is kept here.",
        "Ask a node with a longer history; or prove the absence of the payment's UETR: those are kept for ever.",
    ),
    "wrong_proof_height": ErrorEntry(
        "At that height the request's absence proves nothing: it lies before the expiry or after the retention.",
        "Leave out the height, and the node finds one; or choose one whose block time the message allows.",
    ),
    "transaction_not_kept": ErrorEntry(
        "This node has not kept the bytes of that transaction.",
        "Ask the node that accepted it, or give the transaction: a file (`hansa tx submit --save`) or its content.",
    ),
    "no_value": ErrorEntry(
        "The state holds nothing under that key at that height: there is no value to prove; nothing was written.",
        "Check the spelling and the height, or prove that there is none: `hansa prove absence`.",
    ),
    "value_present": ErrorEntry(
        "The state holds a value under that key at that height, so there is no absence; nothing was written.",
        "Check the spelling and the height, or prove the value: `hansa prove state`.",
    ),
    "proof_refused": ErrorEntry(
        "What the node answered does not prove what was asked, by the network.toml at hand; nothing was written.",
        "Compare network.toml with the network's; if it is right, the node lies or is damaged: ask another.",
    ),
    "proof_not_written": ErrorEntry(
        "The evidence pack could not be written to the file.",
        "Name a file that does not exist yet, in a directory that exists and has room.",
    ),
    "transaction_not_saved": ErrorEntry(
        "The signed transaction could not be written to the file, so it was not sent.",
        "Name a file that does not exist yet, in a directory that exists and has room.",
    ),
    "transaction_file_unreadable": ErrorEntry(
        "The transaction file does not exist or may not be read.",
        "Check the path; `hansa tx build` writes such a file.",
    ),
    "transaction_file_invalid": ErrorEntry(
        "The file is no transaction file, is damaged, or is larger than any can be. Nothing was signed or sent.",
        "Use the file that `hansa tx build` wrote or `hansa tx sign` added to; docs/keys.md has the format.",
    ),
    "transaction_file_altered": ErrorEntry(
        "The parts of the transaction file contradict one another: it was changed. Nothing was signed or sent.",
        "Ask whoever gave it to you; have it built and signed again, and compare the transaction id by telephone.",
    ),
    "transaction_file_not_written": ErrorEntry(
        "The transaction file could not be written. What lay there before is unchanged.",
        "A new one needs a name that does not exist yet; otherwise check the directory's permissions and room.",
    ),
    "signer_not_entitled": ErrorEntry(
        "The key is none of those that sign for the sender. Nothing was signed.",
        "Sign with a key that the message names. If the policy has changed since, build the transaction again.",
    ),
    "already_signed": ErrorEntry(
        "This key's signature stands in the file already: the same person's second one counts for nothing.",
        "Pass the file to the next signer, or send it: `hansa tx submit --signed FILE`.",
    ),
    "not_confirmed": ErrorEntry(
        "Nobody confirmed that this is to be signed. Nothing was signed.",
        "Read what is shown and answer y; `--yes` confirms where no terminal is.",
    ),
    "verifier_missing": ErrorEntry(
        "The stand-alone verifier, which checks each pack before it is written, is not installed.",
        "Install it beside this command: pip install ./verifier",
    ),
    "query_refused": ErrorEntry(
        "The contract refused the query, for the reason that is named; `reason` in details is its code.",
        "Ask for what there is: `hansa brake list`, `approvals list`, `maintenance list` and `proposals` have the"
        " numbers; `hansa contracts CONTRACT` has all reasons.",
    ),
    "not_ready": ErrorEntry(
        "The node runs, but it does not follow the network or no blocks can be made.",
        "Read `reasons` in the answer and run `hansa why`.",
        retryable=True,
    ),
    "internal_error": ErrorEntry(
        "The node met a condition that its authors did not foresee.",
        "Keep the node's log and report it; nothing is final that the ledger does not show.",
    ),
    "node_unreachable": ErrorEntry(
        "No node answered at the given addresses.",
        "Check that the node runs and the URL: --node, HANSA_NODE or the data directory's node.toml.",
        retryable=True,
    ),
    "unexpected_answer": ErrorEntry(
        "What answered is no node of this software, or one of a version that this client does not understand.",
        "Check the URL and compare the versions.",
    ),
    "not_final_in_time": ErrorEntry(
        "The transaction was accepted and is still pending.",
        "Ask for its fate with `hansa tx show`; sending the same transaction again is safe.",
        retryable=True,
    ),
    "invalid_usage": ErrorEntry("The command was used wrongly.", "Read the command's --help."),
    "output_not_written": ErrorEntry(
        "What the command shows could not be written: where its output leads there is no room, or the disk fails.",
        "Lead the output to a place with room and run the command again.",
    ),
    # --- gossip and catch-up ---
    "bad_gossip": ErrorEntry(
        "A peer passed on transactions that no honest node accepts, or answered what it was not asked.",
        "Nothing here: it is not listened to for a minute. Ask its operator which version runs there.",
    ),
    "bad_catch_up": ErrorEntry(
        "A peer answered a request for blocks with something else, or with blocks that were not decided.",
        "Nothing here: blocks are fetched from another member. Ask its operator which version runs there.",
    ),
    "bad_proof": ErrorEntry(
        "A peer's account of what a block did does not have the block's certified roots.",
        "Nothing here: another member is asked. Ask its operator which version runs there.",
    ),
    "diverged": ErrorEntry(
        "This node computes another outcome of a block than the network certified; it neither votes nor goes on.",
        "Send the request to another node. Here: `hansa why` names the block, the transaction and the state key.",
        retryable=True,
    ),
    "snapshot_corrupt": ErrorEntry(
        "A snapshot is unreadable, or does not lead to the state root that its block was certified with.",
        "From a peer: nothing here, another one is asked; ask its operator to check the disk. On this disk: remove"
        " the directory that the message names.",
    ),
    "snapshot_foreign": ErrorEntry(
        "A snapshot belongs to another network, or was certified by others than this network's members.",
        "Compare network.toml with that of the other members; take snapshots from this network only.",
    ),
    "snapshot_stale": ErrorEntry(
        "A snapshot is no newer than what this node has, or older than what other members offer.",
        "Nothing here: a newer one is taken, or the blocks themselves.",
    ),
    # --- recovery of a network whose quorum is lost (docs/recovery.md) ---
    "other_history": ErrorEntry(
        "A peer sent a block that stands on another one than this node has decided: the peer lies, or there are two"
        " histories since some members recovered the network without others.",
        "If one peer does it, watch that peer. If several do, do not restart or wipe anything, and ask the members"
        " which history is theirs (docs/recovery.md).",
    ),
    "recovery_not_trusted": ErrorEntry(
        "A peer's block, snapshot or proof belongs to a history that begins with a recovery which nobody has said"
        " to trust here, or leaves out the one that is trusted.",
        "Get the recovery file from a member by another way than the node's links, compare its number with a second"
        " member, and put it in place with `hansa recovery apply FILE`; if another one is applied here, that peer"
        " follows other survivors.",
    ),
    "recovery_differs": ErrorEntry(
        "Two recoveries, or a recovery and this ledger, have different blocks at one height: two histories.",
        "Do not choose alone: the members have to agree which history is theirs. The message names both.",
    ),
    "recovery_refused": ErrorEntry(
        "What the recovery file says cannot be done on this ledger.",
        "Draft it anew with survivors that have a vote at the last certified block, and with a right clock.",
    ),
    "recovery_may_lose_blocks": ErrorEntry(
        "The members that do not go on with their memory are a quorum: they may have decided blocks that no"
        " survivor has ever seen.",
        "Look for their disks, backups and archives first. Only when there is nothing, give such blocks up with"
        " --accept-unseen.",
    ),
    "recovery_too_few": ErrorEntry(
        "Fewer members would go on than genesis lets any vote leave (validators_min).",
        "Find more survivors, or say --accept-few; the others can be resumed by vote afterwards.",
    ),
    "recovery_block_missing": ErrorEntry(
        "This node knows that a block was prepared, and does not have its content.",
        "Draft the recovery at a survivor that has the block (`hansa recovery draft` says so there).",
    ),
    "recovery_base_differs": ErrorEntry(
        "The file does not go on from this node's last certified block.",
        "Sign only what goes on from the highest certified block of all survivors; nodes that lack it catch up.",
    ),
    "recovery_leaves_out_prepared": ErrorEntry(
        "The recovery leaves out a block that may be final: a quorum had prepared it.",
        "Draft the recovery at this node, which keeps that block, and let all survivors sign that draft.",
    ),
    "recovery_memory_lost": ErrorEntry(
        "This member does not know all that it has signed: its disk was lost or put back.",
        "Name it with --without-memory in the draft, or leave it out and resume it by vote afterwards.",
    ),
    "recovery_signed_other": ErrorEntry(
        "This member has signed another recovery. If both came to be complete there were two histories.",
        "Go on with the one that is signed. Only if it can never be complete, draft anew at a node that has signed"
        " it (or with --replaces and its file), and sign that draft with --instead-of and the other one's number.",
    ),
    "recovery_incomplete": ErrorEntry(
        "Not every survivor has signed the recovery file.",
        "Let those that the message names run `hansa recovery sign`, and put the files together with"
        " `hansa recovery combine`.",
    ),
    "recovery_of_another_network": ErrorEntry(
        "The recovery file is one of another network.",
        "Compare the network's id with network.toml; a network that was founded anew has another id.",
    ),
    "recovery_file_invalid": ErrorEntry(
        "The file is no recovery file of this release, or damaged.",
        "Get it again from who made it; a file is never edited by hand.",
    ),
    "recovery_file_altered": ErrorEntry(
        "Parts of the recovery file contradict one another, or a signature in it is wrong.",
        "Get it again from a survivor, and compare its number with another one.",
    ),
    "recovery_file_unreadable": ErrorEntry(
        "The recovery file cannot be read.",
        "Name the right path, and give this user the right to read it.",
    ),
    "recovery_promise_unreadable": ErrorEntry(
        "The note of the recoveries that this member has signed (`recoveries/signed`) is damaged, and data/ holds"
        " none: nobody knows on which chain the member must not vote.",
        "Put a copy of that file back. Without one, remove it only when each recovery that this member has signed"
        " is on the ledger or can never be complete (docs/recovery.md).",
    ),
    "recovery_not_written": ErrorEntry(
        "The recovery file could not be written, or something lies there already.",
        "Name a new file in a directory that can be written.",
    ),
    # --- store (disk) ---
    "data_dir_in_use": ErrorEntry(
        "Another process holds this data directory.",
        "Stop this node first; a second node needs a data_dir of its own. Never run two nodes with one key.",
    ),
    "data_of_another_network": ErrorEntry(
        "The data directory belongs to another network.",
        "Point data_dir at this network's data, or choose an empty directory.",
    ),
    "data_format_unknown": ErrorEntry(
        "The data directory was written in a format that this release does not know.",
        "Run the release that wrote it, or start on an empty directory and catch up from the peers.",
    ),
    "ledger_not_here": ErrorEntry(
        "The data directory is in order, but its ledger has yet to be fetched from the other members.",
        "Start the node (`hansa run`), wait for `hansa sync` (or until it has stopped at a recovery), stop it, and"
        " run the command again.",
    ),
    "data_dir_unusable": ErrorEntry(
        "The data directory cannot be created or opened.",
        "Check the path and its permissions.",
    ),
    "store_corrupt": ErrorEntry(
        "What was read from disk is not what was written.",
        "Check the disk, keep a copy of the data directory, then run `hansa repair`.",
    ),
    "corrupt_state_tree": ErrorEntry(
        "A stored part of the state tree differs from its hash.",
        "Check the disk, keep a copy of the data directory, then run `hansa repair`.",
    ),
    "snapshot_not_cut": ErrorEntry(
        "The process that cuts a snapshot ended before it was done, or could not be started.",
        "The next one is made at its height, and a backup asks again; look whether the machine lacks memory.",
        retryable=True,
    ),
    "ledger_differs": ErrorEntry(
        "What this node stores is not what its blocks lead to.",
        "Keep a copy of the data directory, then let `hansa repair` fetch and rebuild what is wrong.",
    ),
    "backup_unreadable": ErrorEntry(
        "The directory holds no backup of this node, or what a backup needs cannot be read.",
        "Check the path; give every node's backup an empty directory of its own.",
    ),
    "backup_damaged": ErrorEntry(
        "A file of the backup is missing or is not what was written. No data directory was made from it.",
        "Restore from another backup, or start the node with an empty data directory: it fetches everything.",
    ),
    "snapshot_not_made": ErrorEntry(
        "The node could not make a snapshot of its state.",
        "Read its log; free disk beside its data directory, then run the backup again.",
        retryable=True,
    ),
    "restore_refused": ErrorEntry(
        "A backup is restored only into an empty data directory of its own network.",
        "Move the old data directory away and keep it, or choose another --dir.",
    ),
    "repair_impossible": ErrorEntry(
        "Something in the data directory is damaged and cannot be proven right again. Nothing was changed.",
        "Start the other members and try again; or let the node fetch its whole ledger: `hansa repair --join`.",
    ),
    "disk_full": ErrorEntry(
        "The disk has no room left; the node stopped before anything was lost.",
        "Free space on the data directory's file system and start the node again.",
    ),
    "disk_failed": ErrorEntry(
        "The operating system refused to read or write the data directory.",
        "Read the message, check disk and permissions, and start the node again.",
    ),
    "adoption_incomplete": ErrorEntry(
        "This node was taking over a snapshot's state when it stopped, and the snapshot is gone or damaged since.",
        "Remove data/ and joining/ of this node and start it: it joins again, and abstains until it has caught up.",
    ),
    "archive_unreadable": ErrorEntry(
        "The archive file or directory does not exist or may not be read.",
        "Check the path and its permissions; `hansa archive list` shows the files of a node.",
    ),
    "archive_failed": ErrorEntry(
        "The archive file could not be written; nothing is removed that is not archived.",
        "Free space or mend the directory: retention.archive_dir in node.toml. A node goes on by itself then.",
    ),
    "archive_damaged": ErrorEntry(
        "The file is no archive, or its bytes are not those that were written.",
        "Fetch it again from where a copy is kept; any member's archive of the same blocks serves as well.",
    ),
    "archive_refused": ErrorEntry(
        "The archive is whole, but the members of this network did not certify what it holds.",
        "Check network.toml. If it is the right one, this file was made up: keep it and ask where it came from.",
    ),
    "archive_ahead": ErrorEntry(
        "The archive goes on beyond the head of this ledger. Only blocks that were decided and executed here can"
        " be put back; nothing was changed.",
        "Start the node: it fetches what is missing from its peers, and has these blocks then. To build a ledger"
        " from files alone, use `hansa restore` with a backup. `hansa archive query FILE` asks the file itself.",
    ),
    "archive_before_join": ErrorEntry(
        "The archive holds blocks from before the snapshot that this ledger was joined with: there is no header"
        " here with which they could be compared. Nothing was changed.",
        "Ask the file itself: `hansa archive query FILE`. `hansa archive verify FILE` proves it by network.toml.",
    ),
    "store_closed": ErrorEntry("The store was used after it was closed.", "Start the node again."),
    "history_too_far": ErrorEntry(
        "That height lies further back than one past query may reach.",
        "Ask for a later height.",
    ),
    # --- blocks (proposer) ---
    "wrong_height": ErrorEntry("The block does not follow this node's head.", "Wait for catch-up."),
    "wrong_parent": ErrorEntry(
        "The block stands on another parent than this node's head.",
        "Compare the heads of the members with `hansa status`; two decided blocks of one height must never exist.",
    ),
    "time_not_after_parent": ErrorEntry(
        "The block's time is not after its parent's.", "Look at the proposer's node."
    ),
    "block_ahead_of_clock": ErrorEntry(
        "The block's time lies further ahead of this node's clock than drift_ms.",
        "Synchronise the clocks (NTP) of proposer and node; the block is judged again when its time comes.",
        retryable=True,
    ),
    "block_behind_clock": ErrorEntry(
        "The block's time lies further behind this node's clock than drift_ms.",
        "Synchronise the clocks (NTP) of the proposer and of this node.",
    ),
    "malformed_block": ErrorEntry(
        "What was sent as a proposal is none, or it is that of another block.",
        "Look at the node that sent it: it runs another release, or it lies.",
    ),
    "wrong_proposer": ErrorEntry(
        "The block names another proposer than the primary.", "Look at the proposer's node."
    ),
    "contracts_differ": ErrorEntry(
        "The block was built by other contract code than this node runs.",
        "Install the same release everywhere: `hansa contracts` shows the digest of each module.",
    ),
    "contract_not_here": ErrorEntry(
        "The block needs a version of a contract that this node does not have, or has with other bytes.",
        "Install the release that ships it at this node and start it again: it goes on from where it stands.",
    ),
    "quarantine_refused": ErrorEntry(
        "The block quarantines what may not be quarantined.",
        "Look at the proposer's node: quarantine is for heights at which two views have failed.",
    ),
    "block_too_large": ErrorEntry(
        "The block exceeds a limit of the network definition.", "Look at the proposer's node."
    ),
    "block_content_differs": ErrorEntry(
        "The transactions at hand are not those that the proposal names.", "Look at the proposer's node."
    ),
    "transaction_not_includable": ErrorEntry(
        "The block contains a transaction that no block may contain at this height; details name it.",
        "Look at the proposer's node.",
    ),
    "receipts_differ": ErrorEntry(
        "Executing the block gives other receipts than its header says.",
        "Compare contract digests and Python versions of the members: `hansa contracts`.",
    ),
    "state_differs": ErrorEntry(
        "Executing the block gives another state than its header says.",
        "Compare contract digests and Python versions of the members: `hansa contracts`, then run `hansa verify`.",
    ),
    "members_differ": ErrorEntry(
        "Executing the block gives other members for the next height than its header says.",
        "Compare contract digests and Python versions of the members: `hansa contracts`.",
    ),
    # --- mempool ---
    "too_many_from_sender": ErrorEntry(
        "The sender has as many transactions waiting here as one sender may.",
        "Wait for some to become final, then send the same transaction again.",
        retryable=True,
    ),
}
